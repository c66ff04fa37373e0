"""Where else a run's numbers go: TensorBoard, Weights & Biases, MLflow, or a logger of one's own. Imports no JAX."""
