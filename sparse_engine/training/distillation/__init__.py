"""What distillation reads of the model and of its teacher, and how the two are compared."""
