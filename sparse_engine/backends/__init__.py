"""Where a packed weight is multiplied: on the CPU, or on a GPU through CUDA."""
