"""Beyond one machine: shards of a work list, Kubernetes Jobs, Dask. Engines are not rebuilt."""
