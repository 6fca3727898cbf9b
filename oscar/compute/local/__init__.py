"""The engine of one machine: containers by podman or docker, else processes in a sandbox."""
