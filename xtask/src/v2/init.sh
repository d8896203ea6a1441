#!/bin/sh
# Process 1 on the disk: a machine with cgroup v2 and nothing else, as most are today. Runs the
# test programs one after the other and switches the machine off.
export PATH=/sbin:/bin HOME=/root RUST_BACKTRACE=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
echo "kernel $(uname -r), controllers $(cat /sys/fs/cgroup/cgroup.controllers)"
for program in /tests/*; do
    echo "program ${program##*/}"
    "$program" --test-threads=1
    echo "ended $?"
done
for group in /sys/fs/cgroup/*/; do
    [ -d "$group" ] && echo "left behind: $group"
done
echo "all programs have run"
poweroff -f
