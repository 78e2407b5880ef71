"""Built-in encoders: SAM, DeepSeek-OCR, Darknet, YOLOv3-tiny."""
