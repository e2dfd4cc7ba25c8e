#!/bin/sh
# Boots the system's own systemd as the first process of namespaces of its own, for a test of the shipped unit:
#   boot.sh DIRECTORY PROGRAM [--net]
# DIRECTORY has `units` (the only units that there are), `lib` (which becomes /var/lib) and `said` (which becomes /said). The rest
# of the system is read-only and empty where programs write, so that nothing of it can be changed. The network is the machine's, or
# with --net a loopback of its own.
# Whoever kills this script's process ends everything.
set -eu
if [ "${4-}" != inside ]; then
    cgroup=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)/duet-test-$$
    mkdir "$cgroup"
    echo $$ >"$cgroup/cgroup.procs"
    # shellcheck disable=SC2086 # one word or none
    exec unshare --mount --pid --cgroup --uts --ipc ${3-} --fork --kill-child --mount-proc sh "$0" "$1" "$2" "${3-}" inside
fi
mount --make-rprivate /
[ -z "$3" ] || ip link set lo up
mount -t tmpfs tmpfs /run
mkdir /run/systemd /run/units /run/said /run/bin
# Before what the directory and the program may lie in is hidden.
mount --bind "$1/units" /run/units
mount --bind "$1/said" /run/said
mount --bind "$1/lib" /var/lib
cp "$2" /run/bin/duet
mount --bind /run/bin /usr/local/bin
for place in /tmp /var/tmp /var/log /dev/shm /etc/systemd/system; do
    mount -t tmpfs tmpfs "$place"
done
umount -R /sys/fs/cgroup 2>/dev/null || umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for place in / /sys /dev /proc/sys; do
    [ "$place" != /proc/sys ] || mount --bind /proc/sys /proc/sys
    mount -o remount,bind,ro "$place"
done
exec env -i container=duet-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    SYSTEMD_UNIT_PATH=/run/units /lib/systemd/systemd --system --unit=test.target \
    --log-target=console --log-level=info --show-status=no
