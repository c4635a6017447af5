"""MLX: mlx_lm.server, and the same models in a child process."""
