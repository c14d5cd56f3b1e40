// Answers all connections to a port with what they send, as many at once as there are, for ever.
//
//     echo PORT

#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void serve(int peer) {
    char buffer[4096];
    for (;;) {
        ssize_t got = read(peer, buffer, sizeof buffer);
        if (got <= 0)
            exit(got < 0);
        for (ssize_t sent = 0; sent < got;) {
            ssize_t now = write(peer, buffer + sent, (size_t)(got - sent));
            if (now <= 0)
                exit(1);
            sent += now;
        }
    }
}

int main(int count, char **words) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_port = htons(count > 1 ? (uint16_t)atoi(words[1]) : 0);
    signal(SIGCHLD, SIG_IGN);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 1000) != 0) {
        perror("listen");
        return 1;
    }
    for (;;) {
        int peer = accept(listener, NULL, NULL);
        if (peer < 0)
            continue;
        if (fork() == 0)
            serve(peer);
        close(peer);
    }
}
