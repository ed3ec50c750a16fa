"""The sections of a page, each out of the documents that were found."""
