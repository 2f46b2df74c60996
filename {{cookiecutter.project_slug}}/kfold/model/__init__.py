"""The network: build (timm backbone with a fresh head), weights (safetensors with what is needed to rebuild it)."""
