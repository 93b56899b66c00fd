#!/usr/bin/env bash
# make compat: does a folder written by geosam-stac open in Geo-SAM's own engine?
#
# Builds .venv-compat with geosam 0.1.3 (and ultralytics, AGPL-3.0: a test dependency, only there),
# makes random weights, encodes the sample with geosam-stac from the project's environment, then
# opens, prompts and compares the folders with geosam from .venv-compat. Prints a table; exits 1 when a row
# of it fails. Opt-in, not in CI: the environment takes 4 GB and the run some minutes.
#
#   COMPAT_WORK=DIR     keep weights and folders in DIR (default: a temporary folder, removed)
#   COMPAT_ITEM=FILE    an Item of one's own: a local uint8 raster of at least 1792 px
#   GEOSAM_STAC=PATH    the command to test (default: .venv/bin/geosam-stac)
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
project_python="$root/.venv/bin/python"
geosam_stac="${GEOSAM_STAC:-$root/.venv/bin/geosam-stac}"
compat_env="$root/.venv-compat"
item="${COMPAT_ITEM:-$root/catalogs/sample/item.json}"

for needed in "$project_python" "$geosam_stac" "$item"; do
    if [[ ! -e "$needed" ]]; then
        echo "compat: $needed is missing; run 'make test' first, it sets the project up" >&2
        exit 2
    fi
done

if [[ -n "${COMPAT_WORK:-}" ]]; then
    mkdir -p "$COMPAT_WORK"
    work="$(cd "$COMPAT_WORK" && pwd)"
    rm -rf "$work/encoded" "$work/geosam"
else
    work="$(mktemp -d "${TMPDIR:-/tmp}/geosam-compat.XXXXXX")"
    trap 'rm -rf "$work"' EXIT
fi

# The environment, made again only when its pins change.
stamp="$compat_env/.requirements.sha256"
wanted="$(sha256sum < "$here/requirements.txt")"
if [[ ! -x "$compat_env/bin/python" || "$(cat "$stamp" 2> /dev/null || true)" != "$wanted" ]]; then
    echo "compat: installing geosam 0.1.3 into $compat_env" >&2
    "$project_python" -m venv --clear "$compat_env"
    "$compat_env/bin/python" -m pip install --quiet --disable-pip-version-check \
        --requirement "$here/requirements.txt"
    echo "$wanted" > "$stamp"
fi

echo "compat: random weights" >&2
"$project_python" "$here/make_weights.py" "$work/weights" >&2

# encode EXTENT NAME MODEL CHECKPOINT BANDS DTYPE [FORMAT]
encode() {
    local extent="$1" name="$2" model="$3" checkpoint="$4" bands="$5" dtype="$6" format="${7:-pt}"
    local -a bbox
    mapfile -t bbox < <("$project_python" "$here/scene.py" "$item" "$extent")
    [[ "${#bbox[@]}" -eq 2 ]] || { echo "compat: no bbox for $extent" >&2; exit 2; }
    echo "compat: geosam-stac encode, $model, $name" >&2
    "$geosam_stac" encode --item "$item" --bands "$bands" "${bbox[@]}" --stride 512 \
        --model "$model" --checkpoint "$work/weights/$checkpoint" --device cpu --precision fp32 \
        --feature-dtype "$dtype" --format "$format" --out "$work/encoded/$model/$name" >&2
}

# `plain` and `small` are what a labeller would have (the defaults: true colour, float16), from
# a checkpoint file with an upstream name. `swapped` is for the numbers: geosam hands RGB to a
# predictor that expects BGR, so its features are of the channel-swapped image.
for model in sam-vit-base sam2.1-hiera-tiny; do
    case "$model" in
        sam-vit-base) plugin_name=sam_b.pt upstream=upstream/sam_vit_b_untrained.pth ;;
        *) plugin_name=sam2.1_t.pt upstream=upstream/sam2.1_hiera_tiny_untrained.pt ;;
    esac
    encode four plain "$model" "$upstream" red,green,blue float16
    encode small small "$model" "$upstream" red,green,blue float16
    encode four swapped "$model" "$plugin_name" blue,green,red float32
    # The same chip as `small`, stored as safetensors: `pull` makes of it what the plugin opens.
    encode small stored "$model" "$upstream" red,green,blue float16 safetensors
    echo "compat: geosam-stac pull, $model" >&2
    "$geosam_stac" pull "$(echo "$work/encoded/$model/stored"/*/)" \
        --dest "$work/encoded/$model/pulled" >&2
done

# Ultralytics must neither phone home, nor download, nor install, nor write in the user's home.
echo "compat: geosam" >&2
mkdir -p "$work/ultralytics"
cd "$work"
YOLO_OFFLINE=true YOLO_AUTOINSTALL=false YOLO_VERBOSE=false YOLO_CONFIG_DIR="$work/ultralytics" \
    MPLCONFIGDIR="$work/ultralytics" \
    "$compat_env/bin/python" "$here/check_geosam.py" --item "$item" --work "$work"
