"""What lies on disk: paths, leases, attempts, provenance, and what must not be written down."""
