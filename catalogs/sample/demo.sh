#!/bin/sh
# The README's first command: the main job on the project's own sample. Called by `make demo`.
set -eu
model=sam2.1-hiera-tiny
out=out/demo
geosam="$BIN/geosam-stac"

checkpoint=
status=0
"$geosam" models fetch "$model" >/dev/null || status=$?
case $status in
  0) ;;
  75 | 78)
    checkpoint='--checkpoint untrained'
    cat >&2 <<END

  ************************************************************************
  The weights of $model could not be fetched.
  The demo goes on with RANDOM weights: files, manifest and Item are real,
  but the features are good for trying the pipeline, and for nothing else.
  ************************************************************************

END
    ;;
  *) exit "$status" ;;
esac

# shellcheck disable=SC2086  # two words, or none
item=$("$geosam" encode --item catalogs/sample/item.json --model "$model" $checkpoint --out "$out")
echo "new Item: $item"
echo "picture:  $(dirname "$item")/thumbnail.png"
