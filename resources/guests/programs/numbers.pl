# Perl: integers, floats, strings, regular expressions, sorting, digests, bignums, child processes.
use strict;
use warnings;
use Digest::MD5 qw(md5_hex);
use Digest::SHA qw(sha256_hex);
use List::Util qw(sum max);
use Math::BigInt;
use POSIX qw(floor fmod);

my @primes;
my @sieve = (1) x 20000;
for my $n (2 .. $#sieve) {
    next unless $sieve[$n];
    push @primes, $n;
    for (my $m = $n * $n; $m <= $#sieve; $m += $n) { $sieve[$m] = 0 }
}
printf "primes %d last %d sum %d\n", scalar @primes, $primes[-1], sum(@primes);

my ($x, $v) = (0.5, 0);
for (1 .. 50000) { $x = 3.99 * $x * (1 - $x); $v += sin($x) * sqrt($x) + exp(-$x) * log(1 + $x) }
printf "logistic %.17g %.17g %.6e\n", $x, $v, fmod($v, 7.25);
printf "round %s %s %d %x\n", 0.1 + 0.2, 1e300 * 1e10, floor(-2.5), 0xdeadbeef >> 3;

my $text = join ' ', map { sprintf '%05d:%s', $_, md5_hex($_) } 1 .. 3000;
my %seen;
$seen{$1}++ while $text =~ /([0-9a-f])\1+/g;
print 'repeats ', join(',', map { "$_=$seen{$_}" } sort keys %seen), "\n";
(my $swapped = $text) =~ s/(\d+):(\w{4})/$2-$1/g;
print 'digest ', sha256_hex($swapped), "\n";
my @sorted = sort { substr($a, 6) cmp substr($b, 6) } split / /, $text;
print "sorted $sorted[0] $sorted[-1]\n";

print 'factorial ', sha256_hex(Math::BigInt->new(300)->bfac()->bstr()), "\n";
print 'power ', Math::BigInt->new(3)->bmodpow(1_000_003, Math::BigInt->new('170141183460469231731687303715884105727')), "\n";

my @children;
for my $n (1 .. 4) {
    pipe my $reader, my $writer or die "pipe: $!";
    my $pid = fork // die "fork: $!";
    if (!$pid) { print $writer md5_hex($n x 1000); close $writer; exit $n }
    close $writer;
    push @children, [$pid, $reader];
}
for my $child (@children) {
    my $line = readline $child->[1];
    waitpid $child->[0], 0;
    printf "child %d %s\n", $? >> 8, $line;
}
