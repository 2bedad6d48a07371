"""What the scripts share: options and steps, texts, batches, models and training."""
