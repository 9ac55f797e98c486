"""Learning on the graph: torch lives here. What is trained is the ONNX graph itself, so no source code of the model is needed."""
