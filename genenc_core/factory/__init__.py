"""TerraTorch's EncoderDecoderFactory again: backbones, necks, decoders and heads, by name or as modules."""
