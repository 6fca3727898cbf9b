"""Object storage: the ports in `base`, a client of any S3 in `s3`, and the built-in server in `embedded`."""
