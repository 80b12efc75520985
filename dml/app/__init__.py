"""The Hydra layer: config -> checked objects -> run. The only package that imports hydra and omegaconf."""
