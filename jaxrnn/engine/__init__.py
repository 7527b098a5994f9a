"""The loop engine: a step as equations, taken apart, differentiated and run. See README.md beside this file."""
