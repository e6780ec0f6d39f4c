"""The HTTP front: Open Inference Protocol v2 with Triton's extensions."""
