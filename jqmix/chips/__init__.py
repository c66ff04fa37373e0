"""What programs take on chips that need not be here: known by compiling for them, and a model on top."""
