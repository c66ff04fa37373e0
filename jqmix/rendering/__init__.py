"""Films of episodes, drawn with Pillow: a scene per family of environments, and the agents' values underneath."""
