"""SmolLM2-135M-Instruct through everything: see README.md."""
