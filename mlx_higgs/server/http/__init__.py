"""The HTTP face of a worker: routes, guards, and what requests are made of."""
