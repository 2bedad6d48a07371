"""What distillation reads of the two models."""
