#!/bin/busybox sh
# Process 1 of the initial RAM disk: finds the disk and goes on from there.
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do
    /bin/busybox insmod "/modules/$module"
done < /modules/order
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do
    /bin/busybox sleep 0.1
    tries=$((tries + 1))
done
/bin/busybox mount -t ext4 /dev/vda /disk
exec /bin/busybox switch_root /disk /init
