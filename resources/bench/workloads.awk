# The table of workloads.sh, and in the file `json` the body of its JSON. Input: group, name, then the median in microseconds
# (or -) and the number of failures of each of `vmms`, the first of which is native.

function ratio(a, b) { return a == "-" || b == "-" || b == 0 ? "-" : a / b }
function ms(us) { return us == "-" ? "-" : sprintf("%.1f", us / 1000) }
function times(r) { return r == "-" ? "-" : sprintf("%.2f", r) }
function number(value) { return value == "-" ? "null" : sprintf("%.4g", value) }

# A ratio goes into its group's geometric mean and into the mean over all.
function add(key, group, r) {
    if (r == "-") return
    logs[group, key] += log(r); counts[group, key]++
    logs["all", key] += log(r); counts["all", key]++
}
function mean(group, key) { return counts[group, key] ? exp(logs[group, key] / counts[group, key]) : "-" }

# The line of a group's means; a group of one has none.
function means(group, i, line, body) {
    if (members[group] == 1) return
    line = sprintf("%-9s%-14s", group, "mean")
    body = sprintf("\"%s\": {", group)
    for (i = 1; i <= count; i++) line = line sprintf("%13s", "")
    for (i = 2; i <= count; i++) {
        line = line sprintf("%18s", times(mean(group, vmm[i] "/native")))
        body = body sprintf("%s \"%s_to_native\": %s", i > 2 ? "," : "", vmm[i], number(mean(group, vmm[i] "/native")))
    }
    for (i = 3; i <= count; i++) {
        line = line sprintf("%18s", times(mean(group, vmm[i] "/" vmm[2])))
        body = body sprintf(", \"%s_to_%s\": %s", vmm[i], vmm[2], number(mean(group, vmm[i] "/" vmm[2])))
    }
    print line
    group_json = group_json (group_json ? ", " : "") body " }"
}

BEGIN {
    count = split(vmms, vmm, " ")
    line = sprintf("%-9s%-14s", "group", "workload")
    for (i = 1; i <= count; i++) line = line sprintf("%13s", vmm[i] "_ms")
    for (i = 2; i <= count; i++) line = line sprintf("%18s", vmm[i] "/native")
    for (i = 3; i <= count; i++) line = line sprintf("%18s", vmm[i] "/" vmm[2])
    print line "  failed"
}

{
    if ($1 != group && group) means(group)
    group = $1; members[group]++
    line = sprintf("%-9s%-14s", $1, $2)
    body = sprintf("{ \"group\": \"%s\", \"name\": \"%s\"", $1, $2)
    failures = ""
    for (i = 1; i <= count; i++) {
        time[i] = $(2 * i + 1)
        line = line sprintf("%13s", ms(time[i]))
        body = body sprintf(", \"%s\": %s, \"%s_failed\": %d", vmm[i], time[i] == "-" ? "null" : time[i], vmm[i], $(2 * i + 2))
        if ($(2 * i + 2)) failures = failures " " vmm[i] ":" $(2 * i + 2)
    }
    for (i = 2; i <= count; i++) {
        r = ratio(time[i], time[1]); add(vmm[i] "/native", $1, r)
        line = line sprintf("%18s", times(r))
    }
    for (i = 3; i <= count; i++) {
        r = ratio(time[i], time[2]); add(vmm[i] "/" vmm[2], $1, r)
        line = line sprintf("%18s", times(r))
        body = body sprintf(", \"%s_to_%s\": %s", vmm[i], vmm[2], number(r))
    }
    print line " " failures
    workload_json = workload_json (workload_json ? ", " : "") body " }"
}

END {
    if (group) means(group)
    means("all")
    printf "\"workloads\": [ %s ], \"means\": { %s }", workload_json, group_json >json
}
