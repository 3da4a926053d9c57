# Programs that a cell calls by habit.
set -eu
mkdir -p here/a && cd here
seq 1000 > a/n && cp -a a b && mv b c && ln -s c d && ln c/n e
tar czf a.tgz a && mkdir x && tar xzf a.tgz -C x && gzip -k a/n && gunzip -c a/n.gz | wc -l
find . -type f -exec wc -c {} + | sort -k1n | awk '{s += $1} END {print s}'
grep -c 7 a/n | sed 's/^/lines: /' && cut -c1 a/n | uniq | head -n 3 | tee first > /dev/null
ps aux > /dev/null && id && date && df . && du -s . && touch -d yesterday e && stat e && ls -lR > /dev/null
mkfifo pipe && (echo through > pipe &) && cat < pipe
timeout 5 sleep 0.1 && nice true && nproc && env > /dev/null && uname -a && mktemp && readlink -f d && rm -r x
