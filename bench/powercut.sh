#!/bin/sh
# The guest's part in bench/powercut.py: does the steps in $1, a line each, in a directory of the file system on
# /dev/vda, and says which of them are durable. What it writes is taken from /dev/vdb.

# take OFFSET SIZE OPTION...: copies bytes of /dev/vdb, in one write.
take() {
    offset=$1 size=$2
    shift 2
    dd if=/dev/vdb iflag=skip_bytes skip="$offset" bs="$size" count=1 "$@" 2>/dev/null
}

make() { take "$2" "$3" of="$1" conv=fsync; }
grow() { take "$2" "$3" of="$1" oflag=append conv=notrunc,fsync; }
swap() { take "$2" "$3" of=new conv=fsync && mv new "$1" && fsync .; }
drop() { rm "$1" && fsync .; }

# Changes that nobody waits for, so that the journal never holds only what is waited for.
make_noise() {
    while rm -rf noise noises && take 0 300000 of=noise && mkdir noises && mv noise noises; do sleep 0.05; done
}

directory=$2 oldest=$3
echo begin
mount -t ext4 /dev/vda /mnt && cd /mnt && mkdir "$directory" && fsync . || exit
make_noise &
rm -rf "$oldest" &
cd "$directory" || exit
while read -r number verb name offset size; do
    "$verb" "$name" "$offset" "$size" || exit
    echo "did $number"
done <"$1"
echo end
