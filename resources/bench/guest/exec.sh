# A shell that starts a program again and again: fork and exec of busybox, which is static and much larger than `tiny`.
i=0
while [ $i -lt "$1" ]; do
    /bin/busybox true
    i=$((i + 1))
done
echo "$i"
