//! The REST interface under `/api/v1`: who may call, what can be called. What a call does is in the modules below.
//!
//! Every path wants `Authorization: Bearer TOKEN` (file `admin-token`), the OpenAPI document too. Wherever a path takes
//! an object its name serves as well as its id; a VM whose name two hosts have is `HOST/VM`, in a path `HOST%2FVM`.
//! Every error is a [`lull_api::Problem`]. Unknown members of a body are refused. A POST without a body type ignores it.
//!
//! | method and path (below `/api/v1`) | body | answer |
//! |---|---|---|
//! | `GET /openapi.json` | | the OpenAPI document |
//! | `GET /status` | | `ServerStatus` |
//! | `GET /doctor` | | `[Finding]` |
//! | `GET /hosts` | | `[Host]` |
//! | `POST /hosts` | `NewHost` | 201 `Host`, its VMs looked up |
//! | `GET /hosts/{host}` | | `Host` |
//! | `DELETE /hosts/{host}` | | 204 |
//! | `POST /hosts/{host}/rescan` | | `Host` |
//! | `GET /vms` | | `[Vm]` |
//! | `GET /vms/{vm}` | | `Vm` |
//! | `PATCH /vms/{vm}` | `VmChange` | `Vm` |
//! | `POST /vms/{vm}/accept-host-key` | `AcceptHostKey` | `Vm` |
//! | `GET /vms/{vm}/proxy-explain?job=JOB` | | `ProxyExplanation`; without `job` by automatic selection |
//! | `POST /vms/{vm}/test` | | 202 `Session` (kind `test`) |
//! | `POST /vms/{vm}/rehearse` | `QuiesceRequest` | 202 `Session` (kind `rehearse`) |
//! | `POST /vms/{vm}/quiesce` | `QuiesceRequest` | 202 `Session` (kind `quiesce`) |
//! | `GET /credentials` | | `[Credential]` |
//! | `POST /credentials` | `NewCredential` | 201 `Credential` |
//! | `GET /credentials/{credential}` | | `Credential` |
//! | `PATCH /credentials/{credential}` | `CredentialChange` | `Credential`; it may be tried again everywhere |
//! | `DELETE /credentials/{credential}` | | 204 |
//! | `POST /credentials/{credential}/release` | | `Credential`; it may be tried again everywhere |
//! | `GET /repositories` | | `[Repository]` |
//! | `POST /repositories` | `NewRepository` | 201 `Repository` |
//! | `GET /repositories/{repository}` | | `Repository` |
//! | `DELETE /repositories/{repository}` | | 204 |
//! | `GET /jobs` | | `[Job]` |
//! | `POST /jobs` | `NewJob` | 201 `SavedJob` |
//! | `POST /jobs/validate` | `NewJob` | `JobValidation`; nothing is saved |
//! | `GET /jobs/{job}` | | `Job` |
//! | `PATCH /jobs/{job}` | `JobChange` | `SavedJob` |
//! | `DELETE /jobs/{job}` | | 204 |
//! | `POST /jobs/{job}/validate` | | `JobValidation` of the job as it is saved |
//! | `POST /jobs/{job}/run` | | 202 `Session` |
//! | `GET /sessions?job=JOB&limit=N` | | `[SessionSummary]`, newest first; 50 unless told, at most 1000 |
//! | `GET /sessions/{session}` | | `Session` |
//! | `POST /sessions/{session}/cancel` | | `Session` |
//! | `GET /sessions/{session}/events?after=N` | | stream of `SessionEvent` (server-sent events; `Last-Event-ID` serves too) |
//! | `POST /sessions/{session}/renew` | | 204; holds a `quiesce` for some seconds more, call it every second |
//! | `POST /sessions/{session}/end` | `HoldEnd` | 204; the `quiesce` command is over: thaw |
//! | `GET /restore-points?vm=VM` | | `[RestorePoint]`, newest first |
//! | `GET /restore-points/{restore_point}` | | `RestorePoint` (by id only) |
//! | `POST /restore-points/{restore_point}/verify` | | `Verification` |
//! | `DELETE /restore-points/{restore_point}` | | 204; its files too |
//! | `GET /proxies` | | `[Proxy]` |
