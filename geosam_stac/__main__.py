"""`python -m geosam_stac` is `geosam-stac`."""

from geosam_stac.cli import main

if __name__ == "__main__":
    main()
