"""The composition root: settings become a platform, the platform becomes two servers.

`serve` (called by the CLI) runs the API in this process and the S3 server in a child; `api` and `s3` put each of them
together. Nothing else in the program makes stores, engines or servers.
"""
