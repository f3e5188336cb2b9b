//! Credentials with their sealed secrets, and where they rest. Sees no secret in the clear.

use super::{Store, StoreError};
use lull_engine::failover::{Refusal, Refusals};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

/// A credential; its secrets are sealed.
#[derive(Clone, PartialEq, Eq)]
pub struct CredentialRow {
    /// Id.
    pub id: Uuid,
    /// Unique name.
    pub name: String,
    /// Account in the guest.
    pub user: String,
    /// `none`, `sudo`, `sudo-nopasswd` or `su`.
    pub elevation: String,
    /// Counts changes of account and secrets, from 1.
    pub revision: u32,
    /// Sealed password of the account.
    pub password: Option<Vec<u8>>,
    /// Sealed private key.
    pub private_key: Option<Vec<u8>>,
    /// Sealed passphrase of the private key.
    pub passphrase: Option<Vec<u8>>,
    /// Sealed password for the elevation.
    pub elevation_password: Option<Vec<u8>>,
    /// When it was stored or changed.
    pub changed_us: i64,
}

impl Store {
    /// Adds a credential.
    pub async fn add_credential(&self, credential: &CredentialRow) -> Result<(), StoreError> {
        let sql = "INSERT INTO credentials (id, name, user, elevation, revision, password, private_key, passphrase, \
                   elevation_password, changed_us) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
        bound(sqlx::query(sql), credential)
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(|e| self.refused("credential", "storing a credential", e))
    }

    /// Stores a changed credential; refusals of older revisions no longer count.
    pub async fn update_credential(&self, credential: &CredentialRow) -> Result<(), StoreError> {
        let doing = "storing a credential";
        let mut tx = self.begin(doing).await?;
        let sql = "UPDATE credentials SET name = $2, user = $3, elevation = $4, revision = $5, password = $6, \
                   private_key = $7, passphrase = $8, elevation_password = $9, changed_us = $10 WHERE id = $1";
        let done = bound(sqlx::query(sql), credential).execute(&mut *tx).await;
        self.removed("credential", done)?;
        sqlx::query("DELETE FROM credential_rests WHERE credential = $1")
            .bind(credential.id.to_string())
            .execute(&mut *tx)
            .await
            .map_err(|e| self.failed(doing, e))?;
        self.commit_tx(tx, doing).await
    }

    /// All credentials, by name.
    pub async fn credentials(&self) -> Result<Vec<CredentialRow>, StoreError> {
        let sql = "SELECT id, name, user, elevation, revision, password, private_key, passphrase, elevation_password, \
                   changed_us FROM credentials ORDER BY name";
        let rows = sqlx::query(sql).fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading credentials", e))?;
        rows.iter().map(|row| self.credential_row(row)).collect()
    }

    /// Removes a credential; refused while a VM uses it.
    pub async fn remove_credential(&self, credential: Uuid) -> Result<(), StoreError> {
        let sql = "DELETE FROM credentials WHERE id = $1";
        let done = sqlx::query(sql).bind(credential.to_string()).execute(&self.writer).await;
        self.removed("credential", done)
    }

    /// Every refusal that stands.
    pub async fn refusals(&self) -> Result<Refusals, StoreError> {
        let rows = sqlx::query("SELECT doc FROM credential_rests").fetch_all(&self.readers).await;
        let mut refusals = Refusals::default();
        for row in rows.map_err(|e| self.failed("reading refusals", e))? {
            refusals.record(self.document::<Refusal>("a refusal", row.get(0))?);
        }
        Ok(refusals)
    }

    /// A person says that the credential may be tried again everywhere.
    pub async fn release_credential(&self, credential: Uuid) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM credential_rests WHERE credential = $1")
            .bind(credential.to_string())
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(|e| self.failed("releasing a credential", e))
    }

    fn credential_row(&self, row: &SqliteRow) -> Result<CredentialRow, StoreError> {
        Ok(CredentialRow {
            id: self.id(row, 0)?,
            name: row.get(1),
            user: row.get(2),
            elevation: row.get(3),
            revision: row.get(4),
            password: row.get(5),
            private_key: row.get(6),
            passphrase: row.get(7),
            elevation_password: row.get(8),
            changed_us: row.get(9),
        })
    }
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

fn bound<'q>(query: Query<'q>, credential: &'q CredentialRow) -> Query<'q> {
    query
        .bind(credential.id.to_string())
        .bind(&credential.name)
        .bind(&credential.user)
        .bind(&credential.elevation)
        .bind(credential.revision)
        .bind(&credential.password)
        .bind(&credential.private_key)
        .bind(&credential.passphrase)
        .bind(&credential.elevation_password)
        .bind(credential.changed_us)
}
