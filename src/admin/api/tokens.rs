//! Tokens over the API.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::input::Input;
use super::{Answer, Plane};
use crate::admin::access::Role;
use crate::admin::tokens::{TokenError, TokenInfo};
use crate::admin::{Problem, tokens::Tokens};
use crate::identity::now_s;
use crate::registry::Name;

/// A token that is to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewToken {
    /// Its name.
    pub(crate) name: String,
    /// What it allows.
    pub(crate) role: Role,
    /// How long it is valid, seconds.
    pub(crate) valid_s: u32,
}

/// A token that was made. It is shown this once and kept nowhere.
#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct Made {
    /// The token.
    pub(crate) token: String,
}

impl Drop for Made {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.token);
    }
}

impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Self {
        let status = match &error {
            TokenError::Unknown(_) => StatusCode::NOT_FOUND,
            TokenError::Taken(_) | TokenError::TooMany => StatusCode::CONFLICT,
            TokenError::Past => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error)
    }
}

/// All tokens, without the tokens themselves
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", responses((status = 200, body = Vec<TokenInfo>)))]
pub(super) async fn list(State(plane): State<Arc<Plane>>) -> Answer<Vec<TokenInfo>> {
    let tokens = Arc::clone(&plane.tokens);
    Ok(Json(plane.blocking(move |_, _| Ok(tokens.list())).await?))
}

/// Makes a token
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = NewToken, responses(
    (status = 200, body = Made), (status = 400, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn add(
    State(plane): State<Arc<Plane>>,
    Input(wanted): Input<NewToken>,
) -> Answer<Made> {
    let tokens = Arc::clone(&plane.tokens);
    Ok(Json(plane.blocking(move |_, _| make(&tokens, &wanted)).await?))
}

fn make(tokens: &Tokens, wanted: &NewToken) -> Result<Made, Problem> {
    let name: Name = wanted.name.parse()?;
    let now_s = now_s();
    let token = tokens.add(name, wanted.role, now_s, now_s + i64::from(wanted.valid_s))?;
    Ok(Made { token: token.to_string() })
}

/// Ends a token
#[utoipa::path(delete, path = "/v1/tokens/{name}", tag = "tokens",
    params(("name" = String, Path, description = "The token's name")),
    responses((status = 200, body = TokenInfo), (status = 404, body = Problem)))]
pub(super) async fn revoke(
    State(plane): State<Arc<Plane>>,
    Path(name): Path<String>,
) -> Answer<TokenInfo> {
    let tokens = Arc::clone(&plane.tokens);
    let ended = plane.blocking(move |_, _| Ok(tokens.revoke(&name.parse()?)?));
    Ok(Json(ended.await?))
}
