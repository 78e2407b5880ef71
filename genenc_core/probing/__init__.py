"""New points and poolings on stored outputs, without encoder and images."""
