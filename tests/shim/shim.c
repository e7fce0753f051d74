/* A PKCS#11 module that stands before a real one (SoftHSM, in the tests), counts what the real one
 * signs, and misbehaves on demand. Test code: never installed, built at test time by pkcs11_shim.py.
 *
 * Environment, read once at C_GetFunctionList:
 *   SHIM_MODULE        path of the real module (required)
 *   SHIM_LEDGER        file to which one line is appended for each C_Sign that reached the real
 *                      module, each C_Login, C_SetPIN, C_InitPIN and C_Initialize; written before the caller gets
 *                      its answer, so that a signature that was ever seen stands in the ledger
 *   SHIM_CONTROL       file of rules, read again whenever it changes; its counters live in
 *                      SHIM_CONTROL.state, shared by all processes
 *   SHIM_DELAY_MS      sleep so long in each C_Sign, on the calling thread only: sessions overlap
 *   SHIM_MAX_SESSIONS  answer CKR_SESSION_COUNT beyond so many open sessions
 *   SHIM_INIT_ARGS     demand this parameter string at C_Initialize, as NSS-like modules do
 *
 * A rule is a line `ID FUNCTION ACTION [key=value ...]`; FUNCTION `*` means every function below.
 *   actions: hang | segv | abort | exit | rv=N (the real module is not called) | late=N (the real
 *            module is called, then N is returned) | flip (one bit of the signature) | delay=MS |
 *            lockout=K (C_Login, C_SetPIN: CKR_PIN_LOCKED after K wrong PINs in a row, with the token's flags;
 *            C_InitPIN begins anew) |
 *            empty (C_GetSlotList: no token present)
 *   how vendors differ, standing properties of the module:
 *            attr=TYPE (C_GetAttributeValue: the attribute is bytes=HEX, or missing where that is left out;
 *            class=N: of objects of this class only) | hide=N, add=N (C_GetMechanismList: one mechanism) |
 *            flags=N (C_GetTokenInfo: these are set too) |
 *            full (C_GetTokenInfo: no token is left to be initialised) | strip (C_Sign: r and s without leading
 *            zeroes) | der (C_Sign: r and s as DER) | cut=N (C_Sign: without the last N bytes) | twice (C_Sign:
 *            CKR_BUFFER_TOO_SMALL until it was asked for the length)
 *   keys:    after=N  leave the first N matching calls alone;  times=N  act N times, then no more;
 *            digest=HEX  only a C_Sign over a digest that begins so;
 *            mech=N, hash=N  only a C_SignInit of this mechanism, and of RSA-PSS with this hash
 * A length query (C_Sign with no buffer) is passed on: it is no signature, no rule sees it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long ulong_t;
typedef ulong_t rv_t;
typedef unsigned char byte_t;

/* CK_FUNCTION_LIST (PKCS#11 2.40, 4.6): a version, then 68 pointers in this order. */
#define FUNCTIONS(X) \
    X(C_Initialize) X(C_Finalize) X(C_GetInfo) X(C_GetFunctionList) X(C_GetSlotList) X(C_GetSlotInfo) \
    X(C_GetTokenInfo) X(C_GetMechanismList) X(C_GetMechanismInfo) X(C_InitToken) X(C_InitPIN) X(C_SetPIN) \
    X(C_OpenSession) X(C_CloseSession) X(C_CloseAllSessions) X(C_GetSessionInfo) X(C_GetOperationState) \
    X(C_SetOperationState) X(C_Login) X(C_Logout) X(C_CreateObject) X(C_CopyObject) X(C_DestroyObject) \
    X(C_GetObjectSize) X(C_GetAttributeValue) X(C_SetAttributeValue) X(C_FindObjectsInit) X(C_FindObjects) \
    X(C_FindObjectsFinal) X(C_EncryptInit) X(C_Encrypt) X(C_EncryptUpdate) X(C_EncryptFinal) X(C_DecryptInit) \
    X(C_Decrypt) X(C_DecryptUpdate) X(C_DecryptFinal) X(C_DigestInit) X(C_Digest) X(C_DigestUpdate) \
    X(C_DigestKey) X(C_DigestFinal) X(C_SignInit) X(C_Sign) X(C_SignUpdate) X(C_SignFinal) X(C_SignRecoverInit) \
    X(C_SignRecover) X(C_VerifyInit) X(C_Verify) X(C_VerifyUpdate) X(C_VerifyFinal) X(C_VerifyRecoverInit) \
    X(C_VerifyRecover) X(C_DigestEncryptUpdate) X(C_DecryptDigestUpdate) X(C_SignEncryptUpdate) \
    X(C_DecryptVerifyUpdate) X(C_GenerateKey) X(C_GenerateKeyPair) X(C_WrapKey) X(C_UnwrapKey) X(C_DeriveKey) \
    X(C_SeedRandom) X(C_GenerateRandom) X(C_GetFunctionStatus) X(C_CancelFunction) X(C_WaitForSlotEvent)

enum {
#define X(name) F_##name,
    FUNCTIONS(X)
#undef X
    F_COUNT
};

static const char *const function_names[F_COUNT] = {
#define X(name) #name,
    FUNCTIONS(X)
#undef X
};

typedef struct {
    byte_t major, minor;
    void *f[F_COUNT];
} function_list_t;

#define REAL(name, ...) (((rv_t(*)(__VA_ARGS__))real->f[F_##name]))

enum {
    CKR_OK = 0x00,
    CKR_GENERAL_ERROR = 0x05,
    CKR_ARGUMENTS_BAD = 0x07,
    CKR_PIN_INCORRECT = 0xA0,
    CKR_PIN_LOCKED = 0xA4,
    CKR_ATTRIBUTE_TYPE_INVALID = 0x12,
    CKR_SESSION_COUNT = 0xB1,
    CKR_BUFFER_TOO_SMALL = 0x150,
    CKA_CLASS = 0x0,
    CKU_SO = 0,
    CKM_RSA_PKCS_PSS = 0xD,
    CKF_TOKEN_INITIALIZED = 0x400,
    CKF_USER_PIN_COUNT_LOW = 0x10000,
    CKF_USER_PIN_FINAL_TRY = 0x20000,
    CKF_USER_PIN_LOCKED = 0x40000,
    TOKEN_INFO_FLAGS_OFFSET = 96, /* label 32, manufacturer 32, model 16, serial number 16 */
};

enum { MAX_RULES = 32, MAX_COUNTERS = 4096 };

typedef enum { A_HANG, A_SEGV, A_ABORT, A_EXIT, A_RV, A_LATE, A_FLIP, A_DELAY, A_LOCKOUT, A_EMPTY, A_FLAGS,
               A_FULL, A_STRIP, A_DER, A_CUT, A_TWICE, A_ATTR, A_HIDE, A_ADD } action_t; /* from A_ATTR on: several at once */

typedef struct {
    int id, function; /* function -1: every one */
    action_t action;
    ulong_t value, after, times; /* times 0: without end */
    char digest[130];
    long mech, hash, class; /* -1: any */
    long length;            /* of `bytes`; -1: the attribute is missing */
    byte_t bytes[512];
} rule_t;

static function_list_t *real, shim_list;
static const char *ledger_path, *control_path, *init_args;
static long delay_ms, max_sessions;
static atomic_long open_sessions;
static int ledger_fd = -1;
static _Atomic uint64_t *counters; /* [id] how often a rule matched; [0] wrong PINs in a row */
static pthread_mutex_t control_lock = PTHREAD_MUTEX_INITIALIZER;
static struct stat control_stat;
static rule_t rules[MAX_RULES];
static int rule_count;
static _Thread_local long signing_mech = -1, signing_hash = -1; /* of the C_SignInit that a rule is looked up for */
static volatile int *volatile wild_pointer = (volatile int *)8;

static int ready(void);

static void fail(const char *what, const char *detail) {
    fprintf(stderr, "pkcs11 shim: %s: %s\n", what, detail ? detail : "");
    fflush(stderr);
}

static void sleep_ms(long ms) {
    struct timespec rest = {ms / 1000, (ms % 1000) * 1000000L};
    while (nanosleep(&rest, &rest) != 0) {
    }
}

/* One write for one line: O_APPEND keeps lines of several threads and processes whole. */
static void ledger(const char *function, const byte_t *digest, ulong_t digest_len, rv_t rv, const byte_t *sig,
                   ulong_t sig_len) {
    static const char hex[] = "0123456789abcdef";
    char line[4096];
    struct timespec now;
    if (ledger_fd < 0) return;
    if (digest_len > 128) digest_len = 128;
    if (sig_len > 1024) sig_len = 1024;
    clock_gettime(CLOCK_REALTIME, &now);
    int n = snprintf(line, sizeof line, "%lld%09ld %d %ld %s 0x%lx ", (long long)now.tv_sec, now.tv_nsec, getpid(),
                     (long)syscall(SYS_gettid), function, rv);
    if (digest_len == 0) line[n++] = '-';
    for (ulong_t i = 0; i < digest_len; i++) line[n++] = hex[digest[i] >> 4], line[n++] = hex[digest[i] & 15];
    line[n++] = ' ';
    if (sig_len == 0) line[n++] = '-';
    for (ulong_t i = 0; i < sig_len; i++) line[n++] = hex[sig[i] >> 4], line[n++] = hex[sig[i] & 15];
    line[n++] = '\n';
    if (write(ledger_fd, line, (size_t)n) != n) fail("the ledger cannot be written", ledger_path);
}

static int parse_rule(char *line, rule_t *rule) {
    char *save = NULL, *word = strtok_r(line, " \t\n", &save);
    if (word == NULL) return 0;
    memset(rule, 0, sizeof *rule);
    rule->id = atoi(word);
    rule->function = -2;
    rule->mech = rule->hash = rule->class = rule->length = -1;
    word = strtok_r(NULL, " \t\n", &save);
    if (word != NULL && strcmp(word, "*") == 0) rule->function = -1;
    for (int i = 0; word != NULL && i < F_COUNT; i++)
        if (strcmp(word, function_names[i]) == 0) rule->function = i;
    if (rule->id < 1 || rule->id >= MAX_COUNTERS || rule->function == -2) return -1;
    word = strtok_r(NULL, " \t\n", &save);
    if (word == NULL) return -1;
    char *value = strchr(word, '=');
    if (value != NULL) *value++ = 0, rule->value = strtoul(value, NULL, 0);
    static const struct {
        const char *word;
        action_t action;
    } table[] = {{"hang", A_HANG}, {"segv", A_SEGV}, {"abort", A_ABORT}, {"exit", A_EXIT},       {"rv", A_RV},
                 {"late", A_LATE}, {"flip", A_FLIP}, {"delay", A_DELAY}, {"lockout", A_LOCKOUT}, {"empty", A_EMPTY},
                 {"full", A_FULL}, {"strip", A_STRIP}, {"der", A_DER},   {"twice", A_TWICE},     {"attr", A_ATTR},
                 {"hide", A_HIDE}, {"add", A_ADD}, {"cut", A_CUT}, {"flags", A_FLAGS}};
    int known = 0;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp(word, table[i].word) == 0) rule->action = table[i].action, known = 1;
    if (!known) return -1;
    while ((word = strtok_r(NULL, " \t\n", &save)) != NULL) {
        if (strncmp(word, "after=", 6) == 0)
            rule->after = strtoul(word + 6, NULL, 0);
        else if (strncmp(word, "times=", 6) == 0)
            rule->times = strtoul(word + 6, NULL, 0);
        else if (strncmp(word, "digest=", 7) == 0)
            snprintf(rule->digest, sizeof rule->digest, "%s", word + 7);
        else if (strncmp(word, "mech=", 5) == 0)
            rule->mech = strtol(word + 5, NULL, 0);
        else if (strncmp(word, "hash=", 5) == 0)
            rule->hash = strtol(word + 5, NULL, 0);
        else if (strncmp(word, "class=", 6) == 0)
            rule->class = strtol(word + 6, NULL, 0);
        else if (strncmp(word, "bytes=", 6) == 0) {
            rule->length = (long)strlen(word + 6) / 2;
            if (rule->length > (long)sizeof rule->bytes) return -1;
            for (long i = 0; i < rule->length; i++)
                if (sscanf(word + 6 + 2 * i, "%2hhx", &rule->bytes[i]) != 1) return -1;
        }
        else
            return -1;
    }
    return 1;
}

static void read_control(void) { /* control_lock is held */
    struct stat now;
    char line[2048];
    if (stat(control_path, &now) != 0) {
        rule_count = 0;
        memset(&control_stat, 0, sizeof control_stat);
        return;
    }
    if (now.st_ino == control_stat.st_ino && now.st_size == control_stat.st_size &&
        now.st_mtim.tv_sec == control_stat.st_mtim.tv_sec && now.st_mtim.tv_nsec == control_stat.st_mtim.tv_nsec)
        return;
    FILE *file = fopen(control_path, "re");
    if (file == NULL) return;
    control_stat = now;
    rule_count = 0;
    while (rule_count < MAX_RULES && fgets(line, sizeof line, file) != NULL) {
        int got = parse_rule(line, &rules[rule_count]);
        if (got < 0) {
            fail("a rule cannot be understood, and nothing goes on without it", control_path);
            _exit(99);
        }
        rule_count += got;
    }
    fclose(file);
}

/* The first rule that acts on this call, copied to `out`; the matching rules' counters advance. */
static int matching(int function, const char *digest_hex, rule_t *out) {
    if (control_path == NULL) return 0;
    int found = 0;
    pthread_mutex_lock(&control_lock);
    read_control();
    for (int i = 0; i < rule_count && !found; i++) {
        rule_t *rule = &rules[i];
        if (rule->function != -1 && rule->function != function) continue;
        if (rule->digest[0] != 0 &&
            (digest_hex == NULL || strncmp(digest_hex, rule->digest, strlen(rule->digest)) != 0))
            continue;
        if (rule->action >= A_ATTR) continue; /* see `standing` */
        if (rule->mech != -1 && rule->mech != signing_mech) continue;
        if (rule->hash != -1 && rule->hash != signing_hash) continue;
        if (rule->action == A_LOCKOUT) { /* a standing property, not an event */
            *out = *rule, found = 1;
            continue;
        }
        uint64_t hit = atomic_fetch_add(&counters[rule->id], 1);
        if (hit < rule->after || (rule->times != 0 && hit >= rule->after + rule->times)) continue;
        *out = *rule, found = 1;
    }
    pthread_mutex_unlock(&control_lock);
    return found;
}

/* Do what a rule says before the real call; 1 with *rv set where the real module is not to be called. */
static int before(const rule_t *rule, rv_t *rv) {
    switch (rule->action) {
    case A_HANG:
        for (;;) pause();
    case A_SEGV:
        signal(SIGSEGV, SIG_DFL);
        *wild_pointer = 1;
        break;
    case A_ABORT:
        signal(SIGABRT, SIG_DFL);
        abort();
    case A_EXIT:
        _exit(7);
    case A_RV:
        *rv = rule->value;
        return 1;
    case A_DELAY:
        sleep_ms((long)rule->value);
        break;
    default:
        break;
    }
    return 0;
}

#define PASS_OR(function, call)                                       \
    do {                                                              \
        rule_t rule;                                                  \
        rv_t rv;                                                      \
        int ruled = matching(F_##function, NULL, &rule);              \
        if (ruled && before(&rule, &rv)) return rv;                   \
        rv = (call);                                                  \
        if (ruled && rule.action == A_LATE) rv = rule.value;          \
        return rv;                                                    \
    } while (0)

rv_t C_Finalize(void *reserved) { PASS_OR(C_Finalize, REAL(C_Finalize, void *)(reserved)); }

rv_t C_GetSlotInfo(ulong_t slot, void *info) {
    PASS_OR(C_GetSlotInfo, REAL(C_GetSlotInfo, ulong_t, void *)(slot, info));
}

rv_t C_GetSessionInfo(ulong_t session, void *info) {
    PASS_OR(C_GetSessionInfo, REAL(C_GetSessionInfo, ulong_t, void *)(session, info));
}

/* Copies of all rules with this action, which apply together; how many. */
static int standing(action_t action, rule_t *out) {
    int found = 0;
    if (control_path == NULL) return 0;
    pthread_mutex_lock(&control_lock);
    read_control();
    for (int i = 0; i < rule_count; i++)
        if (rules[i].action == action) out[found++] = rules[i];
    pthread_mutex_unlock(&control_lock);
    return found;
}

static rv_t mechanism_list(ulong_t slot, ulong_t *list, ulong_t *count) {
    rule_t hidden[MAX_RULES], added[MAX_RULES];
    int hides = standing(A_HIDE, hidden), adds = standing(A_ADD, added);
    if (hides + adds == 0) return REAL(C_GetMechanismList, ulong_t, ulong_t *, ulong_t *)(slot, list, count);
    ulong_t all[1024], n = 1024 - MAX_RULES, kept = 0;
    rv_t rv = REAL(C_GetMechanismList, ulong_t, ulong_t *, ulong_t *)(slot, all, &n);
    if (rv != CKR_OK) return rv;
    for (ulong_t i = 0; i < n; i++) {
        int drop = 0;
        for (int k = 0; k < hides; k++) drop |= all[i] == hidden[k].value;
        if (!drop) all[kept++] = all[i];
    }
    for (int k = 0; k < adds; k++) all[kept++] = added[k].value;
    for (int k = 0; k < hides; k++) atomic_fetch_add(&counters[hidden[k].id], 1);
    for (int k = 0; k < adds; k++) atomic_fetch_add(&counters[added[k].id], 1);
    if (list != NULL && *count < kept) rv = CKR_BUFFER_TOO_SMALL;
    if (list != NULL && rv == CKR_OK) memcpy(list, all, kept * sizeof *all);
    *count = kept;
    return rv;
}

rv_t C_GetMechanismList(ulong_t slot, ulong_t *list, ulong_t *count) {
    PASS_OR(C_GetMechanismList, mechanism_list(slot, list, count));
}

rv_t C_Logout(ulong_t session) { PASS_OR(C_Logout, REAL(C_Logout, ulong_t)(session)); }

typedef struct {
    ulong_t type;
    void *value;
    ulong_t length;
} attribute_t;

static rv_t attributes(ulong_t session, ulong_t object, attribute_t *template, ulong_t count) {
    rule_t changed[MAX_RULES];
    int changes = standing(A_ATTR, changed);
    if (changes == 0)
        return REAL(C_GetAttributeValue, ulong_t, ulong_t, void *, ulong_t)(session, object, template, count);
    ulong_t class = ~0UL;
    attribute_t ask = {CKA_CLASS, &class, sizeof class};
    REAL(C_GetAttributeValue, ulong_t, ulong_t, void *, ulong_t)(session, object, &ask, 1);
    rv_t answer = CKR_OK;
    for (ulong_t i = 0; i < count; i++) { /* one by one: each answers for itself */
        const rule_t *rule = NULL;
        for (int k = 0; k < changes; k++)
            if (changed[k].value == template[i].type && (changed[k].class == -1 || (ulong_t)changed[k].class == class))
                rule = &changed[k];
        rv_t rv = CKR_OK;
        if (rule == NULL)
            rv = REAL(C_GetAttributeValue, ulong_t, ulong_t, void *, ulong_t)(session, object, &template[i], 1);
        else {
            atomic_fetch_add(&counters[rule->id], 1);
            ulong_t room = template[i].length;
            template[i].length = (ulong_t)rule->length;
            if (rule->length < 0)
                rv = CKR_ATTRIBUTE_TYPE_INVALID;
            else if (template[i].value != NULL && room < (ulong_t)rule->length)
                rv = CKR_BUFFER_TOO_SMALL, template[i].length = ~0UL;
            else if (template[i].value != NULL)
                memcpy(template[i].value, rule->bytes, (size_t)rule->length);
        }
        if (rv != CKR_OK) answer = rv;
    }
    return answer;
}

rv_t C_GetAttributeValue(ulong_t session, ulong_t object, void *template, ulong_t count) {
    PASS_OR(C_GetAttributeValue, attributes(session, object, template, count));
}

rv_t C_FindObjectsInit(ulong_t session, void *template, ulong_t count) {
    PASS_OR(C_FindObjectsInit, REAL(C_FindObjectsInit, ulong_t, void *, ulong_t)(session, template, count));
}

rv_t C_FindObjects(ulong_t session, ulong_t *objects, ulong_t max, ulong_t *count) {
    PASS_OR(C_FindObjects, REAL(C_FindObjects, ulong_t, ulong_t *, ulong_t, ulong_t *)(session, objects, max, count));
}

rv_t C_FindObjectsFinal(ulong_t session) { PASS_OR(C_FindObjectsFinal, REAL(C_FindObjectsFinal, ulong_t)(session)); }

/* Sessions that were asked for a signature's length since their C_SignInit, for `twice`. */
static atomic_int asked_length[4096];

rv_t C_SignInit(ulong_t session, void *mechanism, ulong_t key) {
    attribute_t *given = mechanism; /* CK_MECHANISM has the same layout */
    signing_mech = given == NULL ? -1 : (long)given->type;
    signing_hash = signing_mech == CKM_RSA_PKCS_PSS && given->value != NULL ? (long)*(ulong_t *)given->value : -1;
    atomic_store(&asked_length[session % 4096], 0);
    PASS_OR(C_SignInit, REAL(C_SignInit, ulong_t, void *, ulong_t)(session, mechanism, key));
}

rv_t C_GetSlotList(byte_t present, ulong_t *slots, ulong_t *count) {
    rule_t rule;
    rv_t rv;
    int ruled = matching(F_C_GetSlotList, NULL, &rule);
    if (ruled && rule.action == A_EMPTY && present) {
        *count = 0;
        return CKR_OK;
    }
    if (ruled && before(&rule, &rv)) return rv;
    return REAL(C_GetSlotList, byte_t, ulong_t *, ulong_t *)(present, slots, count);
}

typedef struct {
    void *create, *destroy, *lock, *unlock;
    ulong_t flags;
    void *reserved;
} initialize_args_t;

rv_t C_Initialize(void *args) {
    rule_t rule;
    rv_t rv;
    initialize_args_t own;
    if (!ready()) return CKR_GENERAL_ERROR; /* found by dlsym, before C_GetFunctionList */
    int ruled = matching(F_C_Initialize, NULL, &rule);
    if (ruled && before(&rule, &rv)) return rv;
    if (init_args != NULL) {
        initialize_args_t *given = args;
        if (given == NULL || given->reserved == NULL || strcmp(given->reserved, init_args) != 0)
            return CKR_ARGUMENTS_BAD;
        own = *given;
        own.reserved = NULL; /* the real module knows nothing of it */
        args = &own;
    }
    rv = REAL(C_Initialize, void *)(args);
    ledger("C_Initialize", NULL, 0, rv, NULL, 0);
    return rv;
}

rv_t C_OpenSession(ulong_t slot, ulong_t flags, void *app, void *notify, ulong_t *session) {
    rule_t rule;
    rv_t rv;
    int ruled = matching(F_C_OpenSession, NULL, &rule);
    if (ruled && before(&rule, &rv)) return rv;
    if (max_sessions > 0 && atomic_load(&open_sessions) >= max_sessions) return CKR_SESSION_COUNT;
    rv = REAL(C_OpenSession, ulong_t, ulong_t, void *, void *, ulong_t *)(slot, flags, app, notify, session);
    if (rv == CKR_OK) atomic_fetch_add(&open_sessions, 1);
    return rv;
}

rv_t C_CloseSession(ulong_t session) {
    rv_t rv = REAL(C_CloseSession, ulong_t)(session);
    if (rv == CKR_OK) atomic_fetch_sub(&open_sessions, 1);
    return rv;
}

rv_t C_CloseAllSessions(ulong_t slot) {
    rv_t rv = REAL(C_CloseAllSessions, ulong_t)(slot);
    if (rv == CKR_OK) atomic_store(&open_sessions, 0);
    return rv;
}

static int lockout_limit(ulong_t *limit) {
    int found = 0;
    if (control_path == NULL) return 0;
    pthread_mutex_lock(&control_lock);
    read_control();
    for (int i = 0; i < rule_count; i++)
        if (rules[i].action == A_LOCKOUT) *limit = rules[i].value, found = 1;
    pthread_mutex_unlock(&control_lock);
    return found;
}

rv_t C_GetTokenInfo(ulong_t slot, byte_t *info) {
    rule_t rule;
    rv_t rv;
    ulong_t limit, flags;
    int ruled = matching(F_C_GetTokenInfo, NULL, &rule);
    if (ruled && before(&rule, &rv)) return rv;
    rv = REAL(C_GetTokenInfo, ulong_t, byte_t *)(slot, info);
    if (rv == CKR_OK && lockout_limit(&limit)) {
        uint64_t wrong = atomic_load(&counters[0]);
        memcpy(&flags, info + TOKEN_INFO_FLAGS_OFFSET, sizeof flags);
        if (wrong > 0) flags |= CKF_USER_PIN_COUNT_LOW;
        if (wrong + 1 == limit) flags |= CKF_USER_PIN_FINAL_TRY;
        if (wrong >= limit) flags |= CKF_USER_PIN_LOCKED;
        memcpy(info + TOKEN_INFO_FLAGS_OFFSET, &flags, sizeof flags);
    }
    if (rv == CKR_OK && ruled && (rule.action == A_FULL || rule.action == A_FLAGS)) {
        memcpy(&flags, info + TOKEN_INFO_FLAGS_OFFSET, sizeof flags);
        flags |= rule.action == A_FULL ? (ulong_t)CKF_TOKEN_INITIALIZED : rule.value;
        memcpy(info + TOKEN_INFO_FLAGS_OFFSET, &flags, sizeof flags);
    }
    return rv;
}

rv_t C_Login(ulong_t session, ulong_t user, byte_t *pin, ulong_t len) {
    rule_t rule;
    rv_t rv;
    ulong_t limit = 0;
    int ruled = matching(F_C_Login, NULL, &rule), locks = user != CKU_SO && lockout_limit(&limit);
    if (locks && atomic_load(&counters[0]) >= limit) {
        ledger("C_Login", NULL, 0, CKR_PIN_LOCKED, NULL, 0);
        return CKR_PIN_LOCKED;
    }
    if (ruled && before(&rule, &rv)) {
        ledger("C_Login", NULL, 0, rv, NULL, 0);
        return rv;
    }
    rv = REAL(C_Login, ulong_t, ulong_t, byte_t *, ulong_t)(session, user, pin, len);
    if (locks && rv == CKR_PIN_INCORRECT) atomic_fetch_add(&counters[0], 1);
    if (locks && rv == CKR_OK) atomic_store(&counters[0], 0);
    ledger("C_Login", NULL, 0, rv, NULL, 0);
    return rv;
}

rv_t C_SetPIN(ulong_t session, byte_t *old, ulong_t old_len, byte_t *pin, ulong_t len) {
    rule_t rule;
    rv_t rv;
    ulong_t limit = 0;
    int ruled = matching(F_C_SetPIN, NULL, &rule), locks = lockout_limit(&limit);
    if (locks && atomic_load(&counters[0]) >= limit) {
        rv = CKR_PIN_LOCKED;
    } else if (!ruled || !before(&rule, &rv)) {
        rv = REAL(C_SetPIN, ulong_t, byte_t *, ulong_t, byte_t *, ulong_t)(session, old, old_len, pin, len);
        if (locks && rv == CKR_PIN_INCORRECT) atomic_fetch_add(&counters[0], 1);
        if (locks && rv == CKR_OK) atomic_store(&counters[0], 0);
        if (ruled && rule.action == A_LATE) rv = rule.value;
    }
    ledger("C_SetPIN", NULL, 0, rv, NULL, 0);
    return rv;
}

rv_t C_InitPIN(ulong_t session, byte_t *pin, ulong_t len) {
    rule_t rule;
    rv_t rv;
    int ruled = matching(F_C_InitPIN, NULL, &rule);
    if (!ruled || !before(&rule, &rv)) {
        rv = REAL(C_InitPIN, ulong_t, byte_t *, ulong_t)(session, pin, len);
        if (rv == CKR_OK && counters != NULL) atomic_store(&counters[0], 0);
        if (ruled && rule.action == A_LATE) rv = rule.value;
    }
    ledger("C_InitPIN", NULL, 0, rv, NULL, 0);
    return rv;
}

/* Rewrite r || s in place: without leading zeroes, or as DER. `sig` holds twice the length, as our callers' buffers do. */
static void rewrite(byte_t *sig, ulong_t *sig_len, int der) {
    byte_t out[300];
    ulong_t half = *sig_len / 2, n = 0;
    for (int part = 0; part < 2; part++) {
        const byte_t *from = sig + part * half;
        ulong_t length = half;
        while (length > 1 && *from == 0) from++, length--;
        if (der) {
            int pad = *from >> 7;
            out[n++] = 2, out[n++] = (byte_t)(length + (ulong_t)pad);
            if (pad) out[n++] = 0;
        }
        memcpy(out + n, from, length), n += length;
    }
    ulong_t head = 0;
    if (der) {
        sig[head++] = 0x30;
        if (n > 127) sig[head++] = 0x81;
        sig[head++] = (byte_t)n;
    }
    memcpy(sig + head, out, n);
    *sig_len = head + n;
}

rv_t C_Sign(ulong_t session, byte_t *data, ulong_t data_len, byte_t *sig, ulong_t *sig_len) {
    rule_t rule;
    rv_t rv;
    char digest_hex[129];
    if (sig == NULL) {
        atomic_store(&asked_length[session % 4096], 1);
        return REAL(C_Sign, ulong_t, byte_t *, ulong_t, byte_t *, ulong_t *)(session, data, data_len, sig, sig_len);
    }
    /* CKM_RSA_PKCS is given DigestInfo: 19 bytes, then a digest of 32, 48 or 64. */
    ulong_t skip = data_len == 51 || data_len == 67 || data_len == 83 ? 19 : 0;
    ulong_t digest_len = data_len - skip > 64 ? 64 : data_len - skip;
    for (ulong_t i = 0; i < digest_len; i++) sprintf(digest_hex + 2 * i, "%02x", data[skip + i]);
    digest_hex[2 * digest_len] = 0;
    int ruled = matching(F_C_Sign, digest_hex, &rule);
    if (ruled && before(&rule, &rv)) return rv;
    if (ruled && rule.action == A_TWICE && !atomic_exchange(&asked_length[session % 4096], 0)) return CKR_BUFFER_TOO_SMALL;
    if (delay_ms > 0) sleep_ms(delay_ms);
    rv = REAL(C_Sign, ulong_t, byte_t *, ulong_t, byte_t *, ulong_t *)(session, data, data_len, sig, sig_len);
    if (ruled && rule.action == A_FLIP && rv == CKR_OK) sig[*sig_len - 1] ^= 1;
    if (ruled && rule.action == A_CUT && rv == CKR_OK) *sig_len -= rule.value;
    if (ruled && (rule.action == A_STRIP || rule.action == A_DER) && rv == CKR_OK)
        rewrite(sig, sig_len, rule.action == A_DER);
    ledger("C_Sign", data + skip, digest_len, rv, rv == CKR_OK ? sig : NULL, rv == CKR_OK ? *sig_len : 0);
    if (ruled && rule.action == A_LATE) rv = rule.value;
    return rv;
}

rv_t C_GetFunctionList(function_list_t **out);

static int set_up(void) {
    const char *path = getenv("SHIM_MODULE"), *text;
    if (path == NULL) return fail("SHIM_MODULE is not set", NULL), 0;
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (module == NULL) return fail("the real module cannot be loaded", dlerror()), 0;
    rv_t (*get)(function_list_t **) = (rv_t(*)(function_list_t **))dlsym(module, "C_GetFunctionList");
    if (get == NULL || get(&real) != CKR_OK) return fail("the real module has no C_GetFunctionList", path), 0;
    control_path = getenv("SHIM_CONTROL");
    init_args = getenv("SHIM_INIT_ARGS");
    ledger_path = getenv("SHIM_LEDGER");
    if ((text = getenv("SHIM_DELAY_MS")) != NULL) delay_ms = atol(text);
    if ((text = getenv("SHIM_MAX_SESSIONS")) != NULL) max_sessions = atol(text);
    if (ledger_path != NULL && (ledger_fd = open(ledger_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) < 0)
        return fail("the ledger cannot be opened", ledger_path), 0;
    if (control_path != NULL) {
        char state[4096];
        snprintf(state, sizeof state, "%s.state", control_path);
        int fd = open(state, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        size_t size = MAX_COUNTERS * sizeof(uint64_t);
        if (fd < 0 || ftruncate(fd, (off_t)size) != 0) return fail("the counters cannot be opened", state), 0;
        void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
        if (map == MAP_FAILED) return fail("the counters cannot be mapped", state), 0;
        counters = map;
    }
    shim_list = *real;
    shim_list.f[F_C_GetFunctionList] = (void *)C_GetFunctionList;
#define OURS(name) shim_list.f[F_##name] = (void *)name
    OURS(C_Initialize), OURS(C_Finalize), OURS(C_GetSlotList), OURS(C_GetSlotInfo), OURS(C_GetTokenInfo);
    OURS(C_GetMechanismList), OURS(C_OpenSession), OURS(C_CloseSession), OURS(C_CloseAllSessions);
    OURS(C_InitPIN), OURS(C_SetPIN);
    OURS(C_GetSessionInfo), OURS(C_Login), OURS(C_Logout), OURS(C_GetAttributeValue), OURS(C_FindObjectsInit);
    OURS(C_FindObjects), OURS(C_FindObjectsFinal), OURS(C_SignInit), OURS(C_Sign);
    return 1;
}

static int ready(void) {
    static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;
    static int done;
    pthread_mutex_lock(&once);
    if (!done) done = set_up();
    pthread_mutex_unlock(&once);
    return done;
}

rv_t C_GetFunctionList(function_list_t **out) {
    if (!ready()) return CKR_GENERAL_ERROR;
    *out = &shim_list;
    return CKR_OK;
}
