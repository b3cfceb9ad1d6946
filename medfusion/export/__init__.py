"""A model in forms that others can use: ONNX, and a card that says what it is."""
