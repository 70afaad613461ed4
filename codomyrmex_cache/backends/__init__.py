"""The stores.  Import them from `codomyrmex_cache`; each module here brings its own optional packages."""
