"""The cloud: a GPU workspace, training jobs, serving, and more than one machine."""
