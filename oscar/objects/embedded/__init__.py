"""The built-in S3 server: bodies in a folder, rows in the Store. See `docs/s3.md`."""
