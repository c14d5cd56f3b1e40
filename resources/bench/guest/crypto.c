// libcrypto at work on a fixed amount: ciphers and digests over one buffer again and again, and RSA signatures. Which code
// libcrypto takes depends on what the CPU has; what it yields does not.
//
//     crypto NAME AMOUNT       (MiB for a cipher or digest, signatures for rsa; its key is /bench/rsa.pem)

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 1 << 20 };
static unsigned char in[CHUNK], out[CHUNK + 64], sum[EVP_MAX_MD_SIZE];

static void check(int good, const char *what) {
    if (good != 1) {
        fprintf(stderr, "crypto: %s fails\n", what);
        exit(1);
    }
}

static unsigned encrypt(const EVP_CIPHER *cipher, int amount) {
    static const unsigned char key[32] = "0123456789abcdef0123456789abcde", iv[16] = "fedcba987654321";
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    unsigned size = 0;
    int length = 0;
    check(EVP_EncryptInit_ex(context, cipher, NULL, key, iv), "init");
    check(EVP_DigestInit_ex(digest, EVP_sha256(), NULL), "digest");
    for (int i = 0; i < amount; i++) {
        check(EVP_EncryptUpdate(context, out, &length, in, CHUNK), "update");
        // The end of each chunk is enough: in CBC it depends on all before.
        check(EVP_DigestUpdate(digest, out + length - 64, 64), "digest");
    }
    check(EVP_EncryptFinal_ex(context, out, &length), "final");
    if (EVP_CIPHER_get_flags(cipher) & EVP_CIPH_FLAG_AEAD_CIPHER) {
        check(EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, 16, out), "tag");
        check(EVP_DigestUpdate(digest, out, 16), "digest");
    }
    check(EVP_DigestFinal_ex(digest, sum, &size), "digest");
    return size;
}

static unsigned digest(const EVP_MD *kind, int amount) {
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    unsigned size = 0;
    check(EVP_DigestInit_ex(context, kind, NULL), "init");
    for (int i = 0; i < amount; i++)
        check(EVP_DigestUpdate(context, in, CHUNK), "update");
    check(EVP_DigestFinal_ex(context, sum, &size), "final");
    return size;
}

static unsigned sign(int amount) {
    static unsigned char signature[1024];
    FILE *file = fopen("/bench/rsa.pem", "r");
    EVP_PKEY *key = file ? PEM_read_PrivateKey(file, NULL, NULL, NULL) : NULL;
    EVP_MD_CTX *context = EVP_MD_CTX_new(), *all = EVP_MD_CTX_new();
    unsigned size = 0;
    check(key != NULL, "the key");
    check(EVP_DigestInit_ex(all, EVP_sha256(), NULL), "digest");
    for (int i = 0; i < amount; i++) {
        size_t length = sizeof signature;
        check(EVP_DigestSignInit(context, NULL, EVP_sha256(), NULL, key), "init");
        check(EVP_DigestSign(context, signature, &length, (unsigned char *)&i, sizeof i), "sign");
        check(EVP_DigestUpdate(all, signature, length), "digest");
        EVP_MD_CTX_reset(context);
    }
    check(EVP_DigestFinal_ex(all, sum, &size), "digest");
    return size;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    int amount = atoi(argv[2]);
    const EVP_CIPHER *cipher = EVP_get_cipherbyname(argv[1]);
    const EVP_MD *kind = EVP_get_digestbyname(argv[1]);
    for (int i = 0; i < CHUNK; i++)
        in[i] = (unsigned char)(i * 7 + (i >> 8));
    unsigned size = cipher ? encrypt(cipher, amount) : kind ? digest(kind, amount) : !strcmp(argv[1], "rsa") ? sign(amount) : 0;
    check(size > 0, argv[1]);
    printf("%s ", argv[1]);
    for (unsigned i = 0; i < size; i++)
        printf("%02x", sum[i]);
    puts("");
    return 0;
}
