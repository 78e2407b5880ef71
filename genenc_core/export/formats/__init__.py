"""The formats that a model can be exported to, one module each, and the table of them."""
