"""Scripts that run in the environments of the tools that are compared."""
