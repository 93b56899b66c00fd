"""Data only: the profiles of public STAC APIs, read by `geosam_stac.sources.profiles`."""
