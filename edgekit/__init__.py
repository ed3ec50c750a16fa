"""edgekit: one model, one quantization, every mobile runtime, and a proof for each."""

__version__ = "0.1.0"
