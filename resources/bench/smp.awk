# The table of smp.sh, and in the file `json` the body of its JSON. Input: group, name, and the medians in microseconds (or -) of one
# copy and of two at once, natively, then of each of `vmms`.

function ms(us) { return us == "-" ? "-" : sprintf("%.0f", us / 1000) }
function shown(r) { return r == "-" ? "-" : sprintf("%.2f", r) }
function number(value) { return value == "-" ? "null" : sprintf("%.4g", value) }
function ratio(a, b) { return a == "-" || b == "-" || b == 0 ? "-" : a / b }

function add(group, key, r) {
    if (r == "-") return
    logs[group, key] += log(r); counts[group, key]++
    logs["all", key] += log(r); counts["all", key]++
}
function mean(group, key) { return counts[group, key] ? exp(logs[group, key] / counts[group, key]) : "-" }

# Throughput of two beside that of one; beside what the hardware gives; and bivisor's time beside QEMU's.
function keys(i) {
    if (i == 1) return "native_2:1"
    return vmm[i] "_2:1," vmm[i] "_of_native"
}

function means(group, i, line, body, part, count, key, k) {
    line = sprintf("%-8s%-12s", group, "mean")
    body = sprintf("\"%s\": {", group)
    for (i = 1; i <= subjects; i++) {
        line = line sprintf("%8s%8s", "", "")
        count = split(keys(i), part, ",")
        for (k = 1; k <= count; k++) {
            line = line sprintf("%8s", shown(mean(group, part[k])))
            body = body sprintf("%s \"%s\": %s", i + k > 2 ? "," : "", part[k], number(mean(group, part[k])))
        }
    }
    for (k = 1; k <= 2 && subjects > 2; k++) {
        key = "at_" k
        line = line sprintf("%12s", shown(mean(group, key)))
        body = body sprintf(", \"%s_to_%s_%s\": %s", vmm[3], vmm[2], key, number(mean(group, key)))
    }
    print line
    group_json = group_json (group_json ? ", " : "") body " }"
}

BEGIN {
    subjects = split("native " vmms, vmm, " ")
    line = sprintf("%-8s%-12s%8s%8s%8s", "group", "workload", "nat_1", "nat_2", "2:1")
    for (i = 2; i <= subjects; i++)
        line = line sprintf("%8s%8s%8s%8s", substr(vmm[i], 1, 3) "_1", substr(vmm[i], 1, 3) "_2", "2:1", "/nat")
    if (subjects > 2) line = line sprintf("%12s%12s", "qemu/biv:1", "qemu/biv:2")
    print line
}

{
    if ($1 != group && group) means(group)
    group = $1
    line = sprintf("%-8s%-12s", $1, $2)
    body = sprintf("{ \"group\": \"%s\", \"name\": \"%s\"", $1, $2)
    for (i = 1; i <= subjects; i++) {
        one[i] = $(2 * i + 1); two[i] = $(2 * i + 2)
        more[i] = ratio(one[i], two[i])
        if (more[i] != "-") more[i] *= 2
        add(group, vmm[i] "_2:1", more[i])
        line = line sprintf("%8s%8s%8s", ms(one[i]), ms(two[i]), shown(more[i]))
        body = body sprintf(", \"%s_1_us\": %s, \"%s_2_us\": %s", vmm[i], number(one[i]), vmm[i], number(two[i]))
        if (i > 1) {
            r = ratio(more[i], more[1])
            add(group, vmm[i] "_of_native", r)
            line = line sprintf("%8s", shown(r))
        }
    }
    if (subjects > 2) {
        r = ratio(one[3], one[2]); add(group, "at_1", r); line = line sprintf("%12s", shown(r))
        r = ratio(two[3], two[2]); add(group, "at_2", r); line = line sprintf("%12s", shown(r))
    }
    print line
    lines = lines (lines ? ", " : "") body " }"
}

END {
    means(group)
    means("all")
    printf "\"workloads\": [%s], \"means\": {%s}", lines, group_json >json
}
