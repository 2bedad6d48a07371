"""What calibration collects about the inputs of layers, and how."""
