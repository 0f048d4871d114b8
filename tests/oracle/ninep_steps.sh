# What is done in a share: shell commands whose output does not depend on who serves it, or should not.
#
# The lines below each `### NAME` run as root, in a directory of that name of their own. `q` says how a command ended,
# `s` describes files, `as_nobody` runs a command as another user. `call` makes a system call by its number (x86-64) and
# ends with the errno; `=text` is a string's address, `@text` one of which as many bytes are shown as the call returned.

q() { "$@"; echo "[$?]"; }
s() { stat -c '%n: %F %a %u:%g %h links' "$@"; }
ls() { command ls -1 --color=never "$@"; }
size() { stat -c '%n: %s bytes' "$@"; }
as_nobody() { su -s /bin/sh nobody -c "$1"; echo "[$?]"; }
recent() { [ "$(stat -c "$1" "$2")" -gt 1500000000 ] && echo "$2 is of today"; }

FCNTL='call 72' FALLOCATE='call 285' GETXATTR='call 191' LGETXATTR='call 192' LINK='call 86' LINKAT='call 265'
LISTXATTR='call 194' LSETXATTR='call 189' MKNOD='call 133' REMOVEXATTR='call 197' RENAME='call 82' RENAMEAT2='call 316'
RMDIR='call 84' SETXATTR='call 188' TRUNCATE='call 76' UNLINK='call 87' UTIMENSAT='call 280'
HERE=18446744073709551516   # AT_FDCWD
OFD_SETLK=37 CREATE=1 REPLACE=2 NOREPLACE=1 EXCHANGE=2 FOLLOW=1024 KEEP_SIZE=1 SOCKET=49572
room='                                                                '

# A lock of type $2 on the whole file of descriptor $1: struct flock (fcntl(2)) is the type, and zeros, which are the ends
# of empty words. Such a lock belongs to the open file and outlives the process.
lock() {
    nothing="'' '' '' '' '' '' ''"
    eval "q $FCNTL $1 $OFD_SETLK '=$(printf "\\$2")' $nothing $nothing $nothing $nothing"
}

### create
echo text >f; cat f; s f; size f

### create-umask
umask 027; echo >f; mkdir d; mkfifo p; s f d p

### create-exclusive
set -C; q sh -c 'set -C; echo a >f'; q sh -c 'set -C; echo b >f'; cat f

### create-under-file
echo >f; q touch f/g; q mkdir f/d

### create-in-missing
q touch missing/f; q mkdir missing/d

### mkdir
q mkdir d; s d; q mkdir d; q mkdir -p d/e/f; s d d/e; echo >f; q mkdir f

### mkdir-modes
for m in 0 700 755 1777 2755 4755; do mkdir -m $m d$m; s d$m; done

### mkdir-setgid-inherits
mkdir d; chown 0:7 d; chmod 2775 d; echo >d/f; mkdir d/e; s d d/f d/e

### append
echo a >f; echo b >>f; exec 3>>f 4>>f; echo 1 >&3; echo 2 >&4; echo 3 >&3; cat f

### append-concurrent
for p in 1 2 3 4; do (i=0; while [ $i -lt 50 ]; do echo $p-$i >>f; i=$((i+1)); done) & done; wait
wc -l <f; sort f | uniq -d; sort -o f f

### append-after-change
exec 3>>f; echo one >&3; echo longer text >f; echo two >&3; cat f

### truncate
echo hello world >f; truncate -s 5 f; od -c f; truncate -s 9 f; od -c f; : >f; size f

### truncate-open
exec 3<>f; echo hello >&3; truncate -s 2 f; echo there >&3; od -c f

### truncate-directory
mkdir d; q $TRUNCATE =d 0; q $TRUNCATE =missing 0; echo >f; q $TRUNCATE =f 9223372036854775808

### overwrite
echo abcdefgh >f; echo XY | dd of=f bs=1 seek=2 conv=notrunc 2>/dev/null; cat f

### holes
echo end | dd of=f bs=1M seek=3 2>/dev/null; size f; od -c f | tail -3
stat -c '%b blocks' f; truncate -s 8M g; stat -c '%b blocks' g; sha256sum f g

### fallocate
q fallocate -l 10000 f; size f; echo >g; exec 3>>g; q $FALLOCATE 3 $KEEP_SIZE 0 4096

### large
dd if=/dev/zero bs=64k count=40 2>/dev/null | tr '\0' x >f; size f; sha256sum f; cp f g; cmp f g

### odd-sizes
for n in 1 511 4095 4096 4097 65537 511999 512000 512001; do head -c $n /bin/busybox >f; sha256sum f; done

### directio
q dd if=/bin/busybox of=f bs=4k count=10 oflag=direct 2>/dev/null; q dd if=f iflag=direct bs=4k 2>/dev/null | sha256sum

### mmap
printf 'abc\n' >f; q store f; sync; cat f; q store missing

### copy-and-run
cp /bin/busybox busybox; q ./busybox echo run; chmod -x busybox; q ./busybox echo run

### fsync
echo >f; q fsync f; q fsync .; q sync; echo x | dd of=f conv=fsync 2>/dev/null; cat f

### rename
echo a >a; q mv a b; ls; cat b; q mv missing c

### rename-over
echo a >a; echo b >b; exec 3<b; q mv a b; cat <&3; cat b; ls

### rename-open
exec 3<>a; echo one >&3; mv a b; echo two >&3; cat b; mkdir d; mv b d/c; echo three >&3; cat d/c

### rename-hard-link
echo a >a; ln a b; q $RENAME =a =b; ls; s a

### rename-directories
mkdir -p a/b c/d e; echo >c/d/f; q mv -T a e; q mv -T e c; q mv -T c/d c; ls -R; echo >f
q $RENAME =f =c; q $RENAME =c =f; q $RENAME =e =new; ls

### rename-into-itself
mkdir -p d/e; q mv d d/e/f; q $RENAME =d =d/e/f; q $RENAME =d/e =d; q $RENAME =d =d; ls -R

### rename-above-open
mkdir d; exec 3>d/f; mv d e; echo text >&3; cat e/f; cd e; mv ../e ../g; pwd; echo >h; ls ../g

### rename-dot
mkdir d; q $RENAME =d/. =e; q $RENAME =d =.; q $RENAME =.. =e; ls

### rename-exchange
echo a >a; echo b >b
q $RENAMEAT2 $HERE =a $HERE =b $EXCHANGE; cat a
q $RENAMEAT2 $HERE =a $HERE =b $NOREPLACE; cat b

### unlink
echo >f; q rm f; q rm f; mkdir d; q unlink d; q $UNLINK =d; ls

### unlink-open
exec 3>f 4<f; rm f; echo data >&3; cat <&4; stat -L -c '%h links %s bytes' /proc/self/fd/3; ls

### unlink-open-directory
mkdir d; cd d; rmdir ../d; q ls; q touch f; q ls ../d

### rmdir
mkdir -p d/e; echo >f; q rmdir d; q rmdir d/e; q rmdir d; q rmdir d; q $RMDIR =f; q $RMDIR =.; q $RMDIR =..

### link
echo a >a; q ln a b; s a b; echo more >>b; cat a; q ln a b; mkdir d; q $LINK =d =e; q ln missing c; rm a; s b

### link-to-symlink
echo a >a; ln -s a l; q $LINK =l =m; q $LINKAT $HERE =l $HERE =n $FOLLOW; s m n

### symlink
ln -s f l; readlink l; q cat l; echo text >l; cat f; s f; stat -c '%F %s bytes' l; q ln -s g l
ln -s /etc/alpine-release a; q cat a | wc -l; ln -s .. up; ls up/symlink

### symlink-loop
ln -s l l; q cat l; ln -s b a; ln -s a b; q cat a; q ls -d a

### symlink-targets
long=$(head -c 4090 /dev/zero | tr '\0' x); q ln -s $long l; readlink l | wc -c; stat -c %s l
q ln -s ${long}123456 m; q ln -s '' e; ln -s "$(printf 'new\nline')" n; readlink n; ls | wc -l

### symlink-to-directory
mkdir d; ln -s d l; echo >l/f; ls d; cd l; pwd -P | tail -c 4; q rmdir ../l; rm ../l; ls ..

### names-long
n=$(head -c 255 /dev/zero | tr '\0' n); q touch $n; ls | wc -c; q touch ${n}x 2>&1 | tail -c 20
u=$(printf %s $n | head -c 254 | sed 's/nn/\xc3\xbc/g'); q touch $u; ls | wc -l

### names-odd
for n in ' ' 'two  blanks' -n -- .hidden ... '*' '\' "it's" '"' '$x' 'a:b' '#' '~' '%s'; do
    echo "$n" >"./$n"; cat "./$n"; done
printf 'new\nline\0t\tab\0\001\0\377\0\303\0gr\303\274n' | xargs -0 touch --; ls -A | od -c

### names-special
q mkdir .; q mkdir ..; q rmdir .; q rm .; q mkdir d/; q touch e/; q touch d/.; q mkdir d/..; ls

### deep
i=0; while [ $i -lt 40 ]; do mkdir directory-$i && cd directory-$i; i=$((i+1)); done
echo text >f; cat f; pwd | wc -c; cd ../../..; find . -name f | wc -c

### readdir
seq 2000 | xargs touch; ls | wc -l; ls | sort -n | sha256sum; ls -f | sort | uniq -d; find . | wc -l
seq 2 2 2000 | xargs rm; ls | wc -l; rm -r ../readdir/*; ls -A

### readdir-types
echo >f; mkdir d; ln -s f l; mkfifo p; find . -type f; find . -type d; find . -type l; find . -type p

### readdir-changed
seq 300 | xargs touch; ls -f | while read n; do rm -f $n; done 2>/dev/null; ls | wc -l

### readdir-of-file
echo >f; q ls f/; q cd f

### chmod
echo >f; for m in 0 400 644 755 777 1644; do chmod $m f; s f; done
mkdir d; for m in 0 500 1777; do chmod $m d; s d; done

### chmod-set-id
echo >f; chmod 4755 f; s f; chmod 2755 f; s f; chmod 6711 f; s f; mkdir d; chmod 2755 d; s d; chmod 4755 d; s d

### chmod-symlink
echo >f; ln -s f l; chmod 600 l; s f l

### chown
echo >f; mkdir d; ln -s f l; q chown 1000:1001 f d; s f d; q chown -h 3:4 l; s l f; chown 5 l; s f
chown :7 f; s f; chmod 755 f; chown 4294967294 f; s f; q chown 0:0 f; s f

### chown-clears-set-id
echo >f; chmod 6755 f; chown 1000 f; s f; chmod 6755 f; echo x >>f; s f

### write-clears-set-id
echo >f; chown nobody f; chmod 6777 f; as_nobody 'echo x >>f'; s f

### times
echo >f
for date in '2001-02-03 04:05:06' '1969-12-31 23:59:58' '2040-01-01 00:00:00' '2400-01-01 00:00:00'; do
    touch -d "$date" f; stat -c '%X %Y' f
done
mkdir d; touch -d '2001-02-03 04:05:06' d; stat -c %Y d; echo >d/g; recent %Y d
ln -s f l; touch -h -d '2001-02-03 04:05:06' l; stat -c %Y l

### times-nanoseconds
echo >/tmp/stamp; q $UTIMENSAT $HERE =/tmp/stamp; stat -c %y /tmp/stamp | grep -c '\.000000000'
echo >f; touch -r /tmp/stamp f; stat -c %y f | grep -c '\.000000000'

### times-of-writing
echo >f; touch -d '2001-02-03 04:05:06' f; cat f; stat -c %Y f; echo >>f; recent %Y f
touch -d '2001-02-03 04:05:06' f; chmod 600 f; stat -c %Y f; recent %Z f

### statfs
stat -f -c 'names of %l bytes, type %t' .
[ $(stat -f -c %b .) -gt 0 ] && echo some blocks

### stat-blocks
head -c 100000 /bin/busybox >f; stat -c '%b of %B' f; mkdir d; stat -c '%h links' .

### stat-block-size
echo >f; stat -c %o f

### fifo
mkfifo p; s p; (echo through >p) & cat p; wait; rm p; ls

### device
q mknod c c 1 3; q mknod b b 7 0; s c b; stat -c '%t:%T' c b; q sh -c 'echo >c'; q cat c; ls

### socket
q $MKNOD =s $SOCKET; s s; q cat s; mv s t; ls; rm t

### permissions
echo secret >f; chmod 600 f; as_nobody 'cat f'; as_nobody 'echo x >>f'; as_nobody 'rm -f f'; as_nobody 'touch g'
chmod 644 f; as_nobody 'cat f'; mkdir d; chmod 700 d; as_nobody 'ls d'; as_nobody 'chmod 777 f'; as_nobody 'chown 1 f'

### permissions-own
chmod 1777 .; as_nobody 'echo mine >m; mkdir d; ln -s m l; mkfifo p; cat m'; s m d l p
echo root >r; as_nobody 'rm -f r'; as_nobody 'mv r q'; as_nobody 'chmod 640 m; rm p'; s m; ls

### permissions-read-only-file
echo >f; chmod 444 f; as_nobody 'echo x >f'; q sh -c 'echo x >f'; cat f

### permissions-own-unreadable
chmod 777 .; as_nobody 'umask 777; echo x >f; cat f'; s f; q cat f

### permissions-while-open
chmod 777 .; as_nobody 'exec 3>f; chmod 000 f; echo text >&3'; cat f; s f

### flock
echo >f; q flock f true; q flock -s f flock -s -n f true; q flock f flock -n f true; q flock -s f flock -n f true
q flock f flock -s -n f true; q flock -n f true; mkdir d; q flock d true

### flock-waits
(flock f sh -c 'sleep 1; echo first') & sleep 0.3; flock f echo second; wait

### fcntl-locks
echo >f; exec 3<>f 4<f
lock 3 1; lock 4 0; lock 3 2; lock 4 0; lock 4 1; lock 4 2
(lock 3 1; echo held >ready; sleep 1) &
while ! [ -e ready ]; do sleep 0.1; done; lock 3 1; wait; lock 3 1

### xattr
echo >f; q $SETXATTR =f =user.a =hello 5 0; q $GETXATTR =f =user.a "@$room" 64
q $SETXATTR =f =user.a =twice 5 $CREATE; q $SETXATTR =f =user.b =none 4 $REPLACE; q $SETXATTR =f =user.b = 0 0
$LISTXATTR =f "@$room" 64 | tr '\0' '\n' | sort; q $GETXATTR =f =user.b "@$room" 64
q $GETXATTR =f =user.a "@$room" 2; q $SETXATTR =f =user.a =new 3 $REPLACE; q $GETXATTR =f =user.a "@$room" 64
q $REMOVEXATTR =f =user.a; q $GETXATTR =f =user.a "@$room" 64; q $REMOVEXATTR =f =user.a
mkdir d; q $SETXATTR =d =user.a =x 1 0

### xattr-namespaces
echo >f; for n in trusted.a security.a system.posix_acl_access user.virtfs.uid user.virtfs.mode other.a; do
    echo $n; q $SETXATTR =f =$n =1234 4 0; q $GETXATTR =f =$n "@$room" 64; done
$LISTXATTR =f "@$room" 64 | tr '\0' '\n' | sort

### xattr-capability
cp /bin/busybox f; q $SETXATTR =f =security.capability "=$(printf '\1\1\1\2\1')" 5 0
q $SETXATTR =f =security.selinux =label 6 0

### xattr-symlink
echo >f; ln -s f l; q $LSETXATTR =l =user.a =x 1 0; q $LGETXATTR =l =user.a "@$room" 64

### xattr-large
v=$(head -c 3000 /dev/zero | tr '\0' v); echo >f; q $SETXATTR =f =user.big =$v 3000 0
$GETXATTR =f =user.big "@$v" 3000 | sha256sum; q $SETXATTR =f =user.big =$v 70000 0
