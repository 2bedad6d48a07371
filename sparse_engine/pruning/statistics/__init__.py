"""What calibration collects of a layer's inputs."""
