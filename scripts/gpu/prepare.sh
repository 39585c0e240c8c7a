#!/usr/bin/env bash
# Prepare .device/ for a machine with a GPU and without a network. In the repository's root, on a machine with pip:
#   bash scripts/gpu/prepare.sh DATA
# DATA has cifar10/ and imagenet-sample/, folders of parquet shards; of the latter, as many travel as fit.
#
# The machine there has Python 3.12, torch 2.11 and everything else but these packages. Their wheels are unpacked, stripped
# of what reading and writing parquet and IPC files does not need, and packed as one .tar.xz.
set -euo pipefail
data=${1:?the folder of the data sets, as in: bash scripts/gpu/prepare.sh ../shared/data}
[ -f scripts/gpu/prepare.sh ] || { echo "run this in the repository's root" >&2; exit 2; }
LIMIT=$((62 * 1024 * 1024)) # bytes that may travel, the tracked files included
folder=.device
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
mkdir -p "$folder"

# --- packages ----------------------------------------------------------------------------------------------------------
packages=(datasets==5.2.0 pyarrow==26.0.1 dill==0.4.1 multiprocess==0.70.19 xxhash==4.1.0)
if [ -f "$folder/site.tar.xz" ] && [ "$(cat "$folder/packages" 2>/dev/null)" = "${packages[*]}" ]; then
    echo "packages: packed before"
else
    platforms=()
    for n in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${n}_x86_64"); done
    platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
    python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
        -d "$work/wheels" "${packages[@]}"
    mkdir "$work/site"
    for wheel in "$work"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$work/site"; done
    (
        cd "$work/site"
        rm -rf ./*.data ./_multiprocess/tests multiprocess/tests dill/tests datasets/commands/test.py
        cd pyarrow
        rm -rf include includes tests src vendored/tests
        # What is linked has a name like libarrow_python.so.2600; the others of a library are for compilers.
        find . -name '*.so.*.*.*' -delete
        for name in libarrow_python libarrow_python_flight libarrow_python_parquet_encryption; do rm -f $name.so; done
        rm -f libarrow_flight.so.* libarrow_python_flight.so.* libarrow_s3.so.* libarrow_python_parquet_encryption.so.*
        rm -f libgandiva.so.* gandiva.* _flight.* _s3fs.* _gcsfs.* _azurefs.* _hdfs.* _orc.* _dataset_orc.* _substrait.*
        rm -f _cuda.* _parquet_encryption.* _dataset_parquet_encryption.* _pyarrow_cpp_tests.*
        for kind in pyx pxi pxd pyi h hpp cc; do find . -name "*.$kind" -delete; done
        cd .. && find . -name '__pycache__' -prune -exec rm -rf {} +
        find . -name '*.so*' -type f -exec strip --strip-unneeded {} + 2>/dev/null || true
    )
    tar -C "$work/site" --sort=name --mtime=@0 --owner=0 --group=0 -cf - . | xz -T2 -7 > "$work/site.tar.xz"
    mv "$work/site.tar.xz" "$folder/site.tar.xz"
    echo "${packages[*]}" > "$folder/packages"
    echo "packages: $(du -sm "$work/site" | cut -f1) MiB, packed $(($(stat -c %s "$folder/site.tar.xz") / 1024)) KiB"
fi

# --- data --------------------------------------------------------------------------------------------------------------
rm -rf "$folder/data" && mkdir -p "$folder/data/cifar10" "$folder/data/imagenet"
cp "$data"/cifar10/*.parquet "$folder/data/cifar10/"
git describe --always --dirty > "$folder/commit" 2> /dev/null || rm -f "$folder/commit"
tree() { git ls-files -z --cached --others --exclude-standard | xargs -0 stat -c %s 2>/dev/null | awk '{s += $1} END {print s}'; }
total() { echo $(($(tree) + $(du -sb "$folder" | cut -f1))); }
for shard in "$data"/imagenet-sample/*.parquet; do
    [ $(($(total) + $(stat -c %s "$shard"))) -lt $LIMIT ] || break
    cp "$shard" "$folder/data/imagenet/"
done
chmod -R u+w "$folder"
shards=$(find "$folder/data/imagenet" -name '*.parquet' | wc -l)
echo "ImageNet shards: $shards"
echo "travels: $(($(total) / 1024)) of $((LIMIT / 1024)) KiB, of which the tree is $(($(tree) / 1024)) KiB"
[ "$shards" -gt 0 ] && [ "$(total)" -lt $LIMIT ] || { echo "too much to travel: no ImageNet shard fits" >&2; exit 1; }
