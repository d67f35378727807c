"""What is kept on disk: an OCI image layout, the content that is not complete yet, and an index over both.

    blobs     committed content, by digest               ingest     content not yet complete
    index     tags, membership, listings, last uses      layout     index.json, from which the index is rebuilt
    ledger    bytes used, reserved and free              eviction   what would go first (a pure plan)
    directory folders, format, file system               owner      one directory, one service
    files     whole files or none: what the others share

The files are the truth, the index is what makes them quick to find; it can be lost. Every `OSError` and every database
error leaves this package as `CacheFailed`; what is not there is None.
"""
