"""Sources of encoders: torchvision, timm, built-in, user code."""
